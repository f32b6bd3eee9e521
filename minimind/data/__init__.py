"""Turns data files into batches: reads rows in many forms, tokenises and packs them, and decides
the order of reading. The project's own data is in minimind.samples; training objectives are in
minimind.stages."""
