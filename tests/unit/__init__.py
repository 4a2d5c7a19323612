"""Pure code and virtual time; no network but loopback, no docker."""
