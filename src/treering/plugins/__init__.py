"""Plug-ins for other people's trainers. Nothing is imported here: each plug-in needs its own framework."""
