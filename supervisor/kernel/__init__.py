"""Files, cgroups and processes as Linux gives them. The lowest floor of the supervisor."""
