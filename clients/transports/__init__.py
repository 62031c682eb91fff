"""How requests reach a server: gRPC, its channel, its errors."""
