"""python -m agent.stager"""

from agent.stager.main import main

if __name__ == "__main__":
    raise SystemExit(main())
