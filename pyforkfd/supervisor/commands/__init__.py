"""The commands of the command line that serve or talk to a supervisor."""
