"""One thread for all tests: they are small, and threads that wait for each other on a busy machine take minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, and for the commands that tests start
