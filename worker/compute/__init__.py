"""How a gradient is made: attention, dropout, embedding, lanes, threads, optimizer state in host memory."""
