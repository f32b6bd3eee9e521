"""How quickly are tokens generated, by the engine beside `transformers` and by the server?"""
