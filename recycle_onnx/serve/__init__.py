"""An OpenAI-compatible server for one bundle on one machine (extra `serve`)."""
