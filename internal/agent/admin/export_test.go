package admin

// Operations is how many the handler knows, but for the document.
func Operations() int { return len(new(API).routes()) }
