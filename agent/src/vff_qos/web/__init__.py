"""The page: what `status`, `top`, `usage` and `doctor` know, in a browser.  Changes nothing."""
