"""on_device/ is collected only in a session on the fake device, which tests/cuda/test_sessions.py starts."""

import sys

collect_ignore_glob = [] if "tests.helpers.fake_cuda.plugin" in sys.modules else ["on_device/*"]
