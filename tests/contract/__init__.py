"""What every tier and every lease must keep, run over each of them and each real server."""
