"""One SVI fit: its checks, its steps by graph or one by one, and what it leaves behind."""
