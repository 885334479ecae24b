"""TorchScript, scripted, traced or frozen: the code in the archive is followed symbolically, and never run.

``code`` parses it, ``interpreter`` and ``expressions`` follow it, ``operators`` says what an operator becomes,
``objects`` what lies in the pickles, ``building`` puts the graph together, and ``follow`` is the way through.
"""
