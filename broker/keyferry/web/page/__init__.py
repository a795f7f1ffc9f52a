"""The approval page: what a person is asked, where they log in, and what became of it. It needs no JavaScript.

It holds no credential and no rights of its own: everything is asked of ``keyferry.question.Approvals``, an engine in
the same process or behind the broker API.
"""
