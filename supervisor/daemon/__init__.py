"""What any good daemon needs: sockets, signals, lock, systemd, staying in memory, keeping the machine awake."""
