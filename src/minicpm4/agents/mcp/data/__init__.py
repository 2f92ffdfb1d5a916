"""Conversations to train on: made with tools of servers, and from sets that others made. docs/mcp.md."""
