"""What the machine says: memory, temperatures, power, GPUs. Reads; decides nothing."""
