"""The layers that every HTTP request passes on its way in."""
