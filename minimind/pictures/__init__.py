"""Draws pictures in one style: colours, fonts, axes and curves. A caller brings numbers and words;
nothing here knows a run or a benchmark."""
