"""How quickly does text become batches, and does memory grow with a file?"""
