"""`python -m twinfleet` is `twinfleet`."""

from __future__ import annotations

from twinfleet.cli import main

if __name__ == "__main__":
    main()
