"""The contract of every fleet. A package, so that the cluster of its fixtures ends with the last of its tests."""
