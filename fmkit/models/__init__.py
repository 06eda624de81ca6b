"""Networks: representations phi, with their heads kept apart."""
