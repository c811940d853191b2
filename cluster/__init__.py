"""The engine room: everything that runs on Ray. A driver calls `cluster.session.connect` before anything else here."""
