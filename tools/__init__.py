"""What makes pages of docs/ from the project itself; run from its folder. No part of the installed package."""
