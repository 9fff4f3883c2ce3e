"""python -m server.ctl"""

from server.ctl.main import main

if __name__ == "__main__":
    main()
