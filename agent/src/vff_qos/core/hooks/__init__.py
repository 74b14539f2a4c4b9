"""What the hooks know without asking anybody: credentials, requests, answers."""
