"""Sessions have one thread where a test asks for no number.

Beside the other workers, threads of a small model's sessions mostly wait for each other, and they wait by spinning.
What a default session is like is tested in processes of their own, which do not import this.
"""

from __future__ import annotations

from recycle_onnx.runtime.ort import sessions

sessions.DEFAULT_THREADS = 1
