"""The studio: pages of Gradio on the server's own HTTP API, each in English and in Chinese.

`mount` puts them into a server's application, `page` is the page, `tabs` has a module for each tab.
"""
