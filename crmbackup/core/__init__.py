"""What every layer may use: errors, events, clock, secrets, durable file writes. Standard library only."""
