"""How Windows runs the agent: two services, their installation, their log.

    python -m service.windows install [--config PATH]
    python -m service.windows protect SERVICE      the engine starts after the boot guard
    python -m service.windows unprotect SERVICE
    python -m service.windows remove

What is Windows' own is in agent/host/windows*.py; what a service is, in `plan`.
"""
