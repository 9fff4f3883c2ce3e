"""python -m agent.fetcher"""

from agent.fetcher.main import main

if __name__ == "__main__":
    raise SystemExit(main())
