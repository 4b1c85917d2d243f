"""Messages to people: who is told what and when, and the process that sends them."""
