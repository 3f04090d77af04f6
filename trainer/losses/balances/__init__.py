"""How several losses become one: a module each, found by its kind."""
