"""Skills of the scripted expert: geometry of the scene, grasps, placements, and motions made of them."""
