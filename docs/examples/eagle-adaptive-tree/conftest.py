"""Its presence lets the tests import the module beside it, installed or not."""
