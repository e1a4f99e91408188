"""From a model folder to a model that is warmed up and measured."""
