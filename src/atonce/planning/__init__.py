"""What a method will cost and bring, before it is paid for."""
