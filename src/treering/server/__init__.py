"""The HTTP server: live agents in, from anywhere. Needs the extra `server`."""
