"""python -m agent.guardian"""

from agent.guardian.main import main

if __name__ == "__main__":
    raise SystemExit(main())
