import contextlib, threading, time, sys, random
from concurrent.futures import ThreadPoolExecutor
from tests.integration.provisioning_device import *
from tests.integration.running_platform import platform_on
from tests.integration.raw_mqtt import *
from tests.integration.raw_mqtt import Refused as RawRefused


def test_idle(tmp_path):
    with platform_on(tmp_path / "data") as platform:
        claim = new_claim(platform, tmp_path, "line")
        c, k = (tmp_path / f"line.{e}" for e in ("pem", "key"))
        client = RawClient.of(platform.endpoints.mqtts.port, tmp_path / "ca.pem", certificate=c, key=k)
        ended = threading.Event()
        count = [0]

        def linger(pause):
            while not ended.is_set():
                with contextlib.suppress(OSError, RawRefused), client.session(Connect("x")) as s:
                    count[0] += 1
                    s.link.settimeout(0.5)
                    while not ended.is_set():
                        try:
                            if s.next_packet() is None:
                                break
                        except TimeoutError:
                            pass
                ended.wait(pause)

        for pause in (0.05, 1.0):
            ended.clear()
            count[0] = 0
            with ThreadPoolExecutor(7) as pool:
                f = pool.submit(linger, pause)
                time.sleep(1)
                b = time.monotonic()

                def one(i):
                    made, thing, n = provision_in_the_end(
                        claim,
                        platform,
                        f"{pause}-{i}".replace(".", "_"),
                        pause_s=random.uniform(0.5, 2),
                        deadline_s=110,
                    )
                    return round(time.monotonic() - b, 1), n

                try:
                    print("pause", pause, sorted(pool.map(one, range(6))), "idler sessions", count)
                except BaseException as e:
                    print("FAIL", pause, repr(e)[:200], time.monotonic() - b)
                ended.set()
                f.result()
        assert 0
