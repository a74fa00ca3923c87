"""A sandbox for programs that nobody has read: those that a model wrote, above all.

``run`` starts one and tells what came of it; ``checks`` runs a program against tests whose verdict it cannot reach;
``probe`` says what the kernel gives. Everything is done with what Linux offers to ordinary users, by system calls from
Python: no helper that runs as root, and nothing to install. A kernel that does not give all that is needed is refused.
"""
