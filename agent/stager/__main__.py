"""python -m agent.stager"""

from agent import worker
from agent.stager.main import main

if __name__ == "__main__":
    worker.end(main)
