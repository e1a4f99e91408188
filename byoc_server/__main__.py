"""``python -m byoc_server``."""

import sys

from byoc_server.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
