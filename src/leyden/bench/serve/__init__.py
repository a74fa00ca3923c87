"""``leyden bench serve``: the engine and its server beside transformers and llama.cpp."""
