"""The console: a web page at ``/console`` that shows the pool as it is, and lets admins change it."""
