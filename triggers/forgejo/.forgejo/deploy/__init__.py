"""The steps of workflows/deploy.yml: `python3 -m deploy STEP` in .forgejo. Needs Python 3.11 alone."""
