"""The hooks: engines ask whether somebody may log in, and so tell whose a flow is."""
