"""python -m agent.ctl"""

from agent.ctl.main import main

if __name__ == "__main__":
    raise SystemExit(main())
