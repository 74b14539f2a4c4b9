"""Per-user speed limits in the Linux kernel, fed by a proxy's access log.

The way of a line: ``sources`` read bytes, ``core.accesslog`` turns them into claims (email and
flow), ``core.minors`` gives the email a minor, ``kernel.tc`` makes its class and
``kernel.conntrack`` sets the mark on the flow.  ``follow`` is the loop that joins them.
"""

__version__ = "0.1.0"
