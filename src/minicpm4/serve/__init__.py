"""A server over ``AsyncLLM``: APIs of OpenAI and Anthropic, and what tools ask (``serve.app.create_app``).

What every API shares is in this folder: the way of a request (``endpoints``), who may ask (``guard``), how
many at a time (``gate``), which models are loaded (``shelf``), bodies, errors, chats, answers. An API is a
module or package beside it that has an ``Api``: its endpoints, and its form of errors. ``app.APIS`` lists
them.
"""
