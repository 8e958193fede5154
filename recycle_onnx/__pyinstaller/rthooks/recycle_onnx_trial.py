"""Let a frozen server start the process in which it tries schemas: `sys.executable` is the program itself there."""

import sys

if sys.argv[1:] == ["-m", "recycle_onnx.serve.trial"]:
    from recycle_onnx.serve.trial import main

    main()
    sys.exit()
